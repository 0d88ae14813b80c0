//! Launching: prepare, clone, parent side, child side, ready.
