# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp reparameterize``, where users of OpenMMLab look for it."""

import sys

from mmrepmlp.cli import main

if __name__ == "__main__":
    main(["reparameterize", *sys.argv[1:]])
