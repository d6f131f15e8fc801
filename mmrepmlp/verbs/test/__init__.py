# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp test``: metrics on a test set."""
