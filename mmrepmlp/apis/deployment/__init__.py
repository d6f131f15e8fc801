# SPDX-License-Identifier: Apache-2.0
"""Export of checkpoints from the framework, and evaluation of exported graphs."""
