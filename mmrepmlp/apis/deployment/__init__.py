# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as graphs, and as folders that run without any framework."""
