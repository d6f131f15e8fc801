# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp infer``: run a model on your own images."""
