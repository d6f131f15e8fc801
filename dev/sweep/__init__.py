# SPDX-License-Identifier: Apache-2.0
"""The backbone in one config of each family of the installed frameworks."""
