# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp deploy``: export a checkpoint to a folder that runs without frameworks."""
