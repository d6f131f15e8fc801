# SPDX-License-Identifier: Apache-2.0


class MMRepMLPError(RuntimeError):
    """Something that was asked for cannot be done; the message says why, and what to do next."""
