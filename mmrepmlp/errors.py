# SPDX-License-Identifier: Apache-2.0


class MMRepMLPError(RuntimeError):
    """Raised when a request cannot be fulfilled; the message says why, and what to do next."""
