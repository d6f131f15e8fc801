# SPDX-License-Identifier: Apache-2.0
"""Training, evaluation, and what is checked before either."""
