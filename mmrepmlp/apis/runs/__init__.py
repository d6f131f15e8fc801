# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation, and the checks before them."""
