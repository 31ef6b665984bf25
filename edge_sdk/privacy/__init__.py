"""What may leave the device: detectors, reversible pseudonyms and the gate that every remote call passes."""
