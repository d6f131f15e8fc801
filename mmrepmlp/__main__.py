# SPDX-License-Identifier: Apache-2.0
"""``python -m mmrepmlp VERB``."""

from mmrepmlp.cli import main

if __name__ == "__main__":
    main()
