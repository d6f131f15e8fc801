# SPDX-License-Identifier: Apache-2.0
"""Convert a classifier checkpoint to a plain state dict with the authors' names, in the form that it is in."""

from official_to_mmrepmlp import main  # takes the same arguments

from mmrepmlp.apis import mmrepmlp_to_official

if __name__ == "__main__":
    main(mmrepmlp_to_official, __doc__)
