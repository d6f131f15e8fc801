# SPDX-License-Identifier: Apache-2.0
"""Implementation of the ``mmrepmlp`` commands, one folder per verb."""
