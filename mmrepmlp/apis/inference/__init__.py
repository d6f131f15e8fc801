# SPDX-License-Identifier: Apache-2.0
"""Predictions for images of one's own, through the inferencers of the three frameworks."""
