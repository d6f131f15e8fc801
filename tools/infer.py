# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp infer``, where users of OpenMMLab look for it."""

import sys

from mmrepmlp.cli import main

if __name__ == "__main__":
    main(["infer", *sys.argv[1:]])
