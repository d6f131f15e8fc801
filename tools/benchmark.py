# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp benchmark``, where users of OpenMMLab look for it."""

import sys

from mmrepmlp.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
