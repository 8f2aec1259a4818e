"""Matrix products of a fleet whose weight gradients fill the device."""
