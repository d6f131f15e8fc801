# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp reparameterize``: from a trained checkpoint to its deploy form."""
