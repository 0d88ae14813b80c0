//! `regex-lite` under the name of `regex`.
//!
//! `oci-spec` checks one field (`execCPUAffinity`, digits and commas) by a regular expression, and
//! so brought a Unicode-aware engine of 600 kB into every monitor. This is its authors' small engine
//! with the same interface.

pub use regex_lite::*;
