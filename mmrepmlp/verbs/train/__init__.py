# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp train``: train a model or resume training."""
