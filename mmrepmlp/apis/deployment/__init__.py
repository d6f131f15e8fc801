# SPDX-License-Identifier: Apache-2.0
"""Checkpoints out of the framework, and their evaluation there."""
