"""Internal snapshots of qcow2 images: reading their VM states as streams, and changing them where they lie."""
