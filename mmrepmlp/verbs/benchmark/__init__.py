# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp benchmark``: latency, size and accuracy side by side."""
