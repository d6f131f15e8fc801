# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from one form, set of names or place to another."""
