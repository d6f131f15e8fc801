# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp benchmark``: compare latency, size and accuracy."""
