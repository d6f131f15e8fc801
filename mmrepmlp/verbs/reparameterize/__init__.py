# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp reparameterize``: convert a trained checkpoint to deploy form."""
