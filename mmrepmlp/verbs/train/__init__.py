# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp train``: training and resuming."""
