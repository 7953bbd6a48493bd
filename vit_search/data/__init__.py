"""From image files to batches, and the files of pretrained weights.

    sources/                              one file for each kind of data set; source.py is their interface
    remote, fetch, listed                 files behind a URL
    image_headers, decode, exact_images   one image file: its header, its pixels
    split, group_split                    which image is in which split
    copies, near_duplicates               images that are there twice
    cache                                 `prepare` makes a data set, `read_split` reads it
    batches, epoch_order                  the batches of a training
    backbones, weight_files               pretrained weights

Callers mostly need `cache.prepare` and `batches.load_split`.
"""
