# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp infer``: predictions for images of one's own."""
