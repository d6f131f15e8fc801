# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp deploy``, where users of OpenMMLab look for it."""

import sys

from mmrepmlp.cli import main

if __name__ == "__main__":
    main(["deploy", *sys.argv[1:]])
