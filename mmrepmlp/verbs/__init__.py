# SPDX-License-Identifier: Apache-2.0
"""What a person does with a config and a checkpoint: one folder for each command of ``mmrepmlp``."""
