# SPDX-License-Identifier: Apache-2.0
"""What only the development of this project needs; not installed."""
