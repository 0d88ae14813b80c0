//! Id maps, pure: which ids of a user namespace are which ids of the node (user_namespaces(7)), and
//! for an id-mapped mount which ids of its files are which ids of the node (mount_setattr(2)).
//!
//! Rules of the kernel: at most 340 ranges of each kind (UID_GID_MAP_MAX_EXTENTS of
//! linux/user_namespace.h), none empty, none beyond 4294967294, no id mapped twice on either side.

use std::fmt::Write as _;

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The most ranges of one kind.
pub const MAX_RANGES: usize = 340;

/// Ids that follow each other on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id inside: of the namespace, or of the files.
    pub inside: u32,
    /// The first id on the node.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

impl IdRange {
    /// The id on the node of one inside.
    fn outside(&self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.inside)?;
        (offset < self.length)
            .then(|| self.outside.checked_add(offset))
            .flatten()
    }

    /// Whether two ranges share an id of the node.
    pub fn overlaps_outside(&self, other: &Self) -> bool {
        overlap((self.outside, self.length), (other.outside, other.length))
    }

    fn overlaps_inside(&self, other: &Self) -> bool {
        overlap((self.inside, self.length), (other.inside, other.length))
    }
}

fn overlap(one: (u32, u32), other: (u32, u32)) -> bool {
    let end = |(first, length): (u32, u32)| u64::from(first) + u64::from(length);
    u64::from(one.0) < end(other) && u64::from(other.0) < end(one)
}

/// Maps of user and group ids.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMaps {
    /// Of user ids.
    pub uids: Vec<IdRange>,
    /// Of group ids.
    pub gids: Vec<IdRange>,
}

impl IdMaps {
    /// From the OCI runtime specification's two lists; `field` is what they belong to. None if both
    /// are absent or empty; one without the other is refused.
    pub fn from_oci(
        field: &str,
        uids: Option<&Vec<LinuxIdMapping>>,
        gids: Option<&Vec<LinuxIdMapping>>,
    ) -> Result<Option<Self>> {
        let ranges = |list: Option<&Vec<LinuxIdMapping>>| -> Vec<IdRange> {
            list.into_iter()
                .flatten()
                .map(|range| IdRange {
                    inside: range.container_id(),
                    outside: range.host_id(),
                    length: range.size(),
                })
                .collect()
        };
        let maps = Self {
            uids: ranges(uids),
            gids: ranges(gids),
        };
        if maps.uids.is_empty() && maps.gids.is_empty() {
            return Ok(None);
        }
        maps.check(field)?;
        Ok(Some(maps))
    }

    /// Refuses what the kernel would, with words.
    pub fn check(&self, field: &str) -> Result<()> {
        check_ranges(&format!("{field}.uidMappings"), &self.uids)?;
        check_ranges(&format!("{field}.gidMappings"), &self.gids)
    }

    /// The node's id of a user inside; none if it isn't mapped.
    pub fn outside_uid(&self, uid: u32) -> Option<u32> {
        self.uids.iter().find_map(|range| range.outside(uid))
    }

    /// The node's id of a group inside; none if it isn't mapped.
    pub fn outside_gid(&self, gid: u32) -> Option<u32> {
        self.gids.iter().find_map(|range| range.outside(gid))
    }

    /// The node's ids of root inside. An error if root isn't mapped: nothing could be set up.
    pub fn root(&self, field: &str) -> Result<(u32, u32)> {
        match (self.outside_uid(0), self.outside_gid(0)) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => Err(Error::invalid(format!(
                "{field}: ids 0 must be mapped in a user namespace"
            ))),
        }
    }

    /// The lists as an OCI spec has them.
    pub fn to_oci(&self) -> (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>) {
        let list = |ranges: &[IdRange]| {
            ranges
                .iter()
                .map(|range| {
                    // The builder has a default for every field, so it can't fail.
                    LinuxIdMappingBuilder::default()
                        .container_id(range.inside)
                        .host_id(range.outside)
                        .size(range.length)
                        .build()
                        .unwrap_or_default()
                })
                .collect()
        };
        (list(&self.uids), list(&self.gids))
    }
}

/// Ranges as `/proc/<pid>/uid_map` takes them: a line each, in one write.
pub(crate) fn render(ranges: &[IdRange]) -> Vec<u8> {
    let mut text = String::new();
    for range in ranges {
        // Writing to a string can't fail.
        let _written = writeln!(text, "{} {} {}", range.inside, range.outside, range.length);
    }
    text.into_bytes()
}

fn check_ranges(field: &str, ranges: &[IdRange]) -> Result<()> {
    if ranges.is_empty() || ranges.len() > MAX_RANGES {
        return Err(Error::invalid(format!(
            "{field}: {} ranges; uids and gids each need 1 to {MAX_RANGES}",
            ranges.len()
        )));
    }
    for (index, range) in ranges.iter().enumerate() {
        let fits = |first: u32| first.checked_add(range.length).is_some();
        if range.length == 0 {
            return Err(Error::invalid(format!("{field}[{index}]: no ids")));
        }
        if !fits(range.inside) || !fits(range.outside) {
            return Err(Error::invalid(format!(
                "{field}[{index}]: goes beyond 4294967294, the last id"
            )));
        }
        let twice = |other: &IdRange| range.overlaps_inside(other) || range.overlaps_outside(other);
        if ranges.iter().take(index).any(twice) {
            return Err(Error::invalid(format!(
                "{field}[{index}]: maps an id twice"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(inside: u32, outside: u32, length: u32) -> IdRange {
        IdRange {
            inside,
            outside,
            length,
        }
    }

    #[test]
    fn maps_the_kernel_would_refuse_are_refused_with_words() {
        let good = range(0, 100_000, 65_536);
        for (ranges, fault) in [
            (vec![good], None),
            (vec![range(0, 5, 1), range(1, 6, 1)], None),
            (vec![range(0, 1, u32::MAX - 1)], None),
            (vec![], Some("0 ranges")),
            (vec![range(0, 1, 1); 341], Some("341 ranges")),
            (vec![range(0, 1, 0)], Some("no ids")),
            (vec![range(0, 1, u32::MAX)], Some("beyond 4294967294")),
            (vec![range(u32::MAX, 1, 1)], Some("beyond 4294967294")),
            (
                vec![range(0, 100, 10), range(5, 200, 10)],
                Some("[1]: maps an id twice"),
            ),
            (
                vec![range(0, 100, 10), range(10, 109, 10)],
                Some("[1]: maps an id twice"),
            ),
        ] {
            for (uids, gids) in [(&ranges, &vec![good]), (&vec![good], &ranges)] {
                let maps = IdMaps {
                    uids: uids.clone(),
                    gids: gids.clone(),
                };
                let result = maps.check("f");
                match fault {
                    None => result.unwrap(),
                    Some(fault) => {
                        let error = result.unwrap_err().to_string();
                        assert!(error.contains(fault), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn ids_are_looked_up_from_the_inside() {
        let maps = IdMaps {
            uids: vec![range(0, 100_000, 10), range(20, 5, 2)],
            gids: vec![range(0, 200_000, 1)],
        };
        for (uid, outside) in [
            (0, Some(100_000)),
            (9, Some(100_009)),
            (10, None),
            (20, Some(5)),
            (21, Some(6)),
            (22, None),
            (u32::MAX, None),
        ] {
            assert_eq!(maps.outside_uid(uid), outside, "{uid}");
        }
        assert_eq!(maps.root("f").unwrap(), (100_000, 200_000));
        assert!(
            IdMaps {
                uids: vec![range(1, 1, 1)],
                ..maps.clone()
            }
            .root("f")
            .is_err()
        );
        assert_eq!(render(&maps.uids), b"0 100000 10\n20 5 2\n");
    }

    #[test]
    fn one_list_without_the_other_is_refused() {
        let list = vec![LinuxIdMapping::default()];
        assert_eq!(IdMaps::from_oci("f", None, Some(&vec![])).unwrap(), None);
        assert!(IdMaps::from_oci("f", Some(&list), None).is_err());
        let maps = IdMaps {
            uids: vec![range(0, 7, 3)],
            gids: vec![range(0, 8, 3)],
        };
        let (uids, gids) = maps.to_oci();
        assert_eq!(
            IdMaps::from_oci("f", Some(&uids), Some(&gids)).unwrap(),
            Some(maps)
        );
    }
}
