# SPDX-License-Identifier: Apache-2.0
"""Run ``mmrepmlp deploy``; users of OpenMMLab look for it here."""

import sys

from mmrepmlp.cli import main

if __name__ == "__main__":
    main(["deploy", *sys.argv[1:]])
