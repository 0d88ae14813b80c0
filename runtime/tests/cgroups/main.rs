//! Control groups on the real kernel: as root, in groups of unique names below each hierarchy's
//! root, of which nothing is left. Each test runs in every way this node can be used: as it is
//! mounted, and with the v1 hierarchies alone where there are any.

// `cfg(test)` is always true here; it tells clippy that helpers may unwrap too.
#[cfg(test)]
mod devices;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod rig;
