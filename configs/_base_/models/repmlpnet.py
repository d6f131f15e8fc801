# SPDX-License-Identifier: Apache-2.0
# A classifier with RepMLPNet-T; configs of other archs set backbone.arch and the channels of the last stage.
custom_imports = dict(imports=["mmrepmlp"])
model = dict(
    _scope_="mmpretrain",
    type="ImageClassifier",
    backbone=dict(type="mmrepmlp.RepMLPNet", arch="T", img_size=224),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=512,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
        topk=(1, 5),
        cal_acc=False,
    ),
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.4), dict(type="CutMix", alpha=1.0)]),
)
