//! Bounds on what one layer may become (threats D4, D5, D6).
//!
//! The defaults let every honest image through that we know of and stop bombs long before a disk
//! is full: ratio is judged while bytes flow, so ten megabytes never become a hundred gigabytes.

/// The bounds of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes after decompression. 64 GiB: larger than any layer a registry product takes.
    pub bytes: u64,
    /// Bytes after decompression for each compressed byte, beyond `ratio_free` bytes. Deflate cannot
    /// exceed 1032; honest layers stay below 20.
    pub ratio: u64,
    /// Bytes that may come out whatever the ratio: small layers of zeros are common.
    pub ratio_free: u64,
    /// Entries of the archive. Two million; the largest public images have some 700,000 files.
    pub entries: u64,
    /// Bytes of a path or link target: Linux's PATH_MAX.
    pub path: u32,
    /// Bytes of the names of directories and unresolved links, which are remembered to the end.
    pub remembered: usize,
    /// Bytes of all extension records of one entry (threat D5: 1 MiB).
    pub metadata: u32,
    /// Bytes of one extended attribute: the kernel's XATTR_SIZE_MAX.
    pub xattr: usize,
    /// Extended attributes of one entry.
    pub xattrs: usize,
    /// Regions of one sparse file.
    pub sparse_regions: usize,
    /// Logical size of one file, sparse or not. 64 GiB, as `bytes`.
    pub file: u64,
    /// Base-2 logarithm of zstd's window: 128 MiB, what `zstd --long` makes.
    pub zstd_window_log: u32,
    /// Space that stays free on the file system, so that records can still be written (H5).
    pub reserve: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            ratio: 200,
            ratio_free: 1 << 30,
            entries: 2_000_000,
            path: 4096,
            remembered: 64 << 20,
            metadata: 1 << 20,
            xattr: 64 << 10,
            xattrs: 128,
            sparse_regions: 10_000,
            file: 64 << 30,
            zstd_window_log: 27,
            reserve: 64 << 20,
        }
    }
}

impl Limits {
    /// What is wrong with `out` bytes having come out of `compressed` so far, if anything is.
    pub(crate) fn judge(&self, compressed: u64, out: u64) -> Result<(), String> {
        if out > self.bytes {
            return Err(format!("it unpacks to more than {} bytes", self.bytes));
        }
        let allowed = self
            .ratio_free
            .saturating_add(compressed.saturating_mul(self.ratio));
        if out > allowed {
            return Err(format!(
                "{compressed} bytes unpack to more than {allowed} (ratio {})",
                self.ratio
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_stopped_by_ratio_and_by_size() {
        let limits = Limits {
            bytes: 1000,
            ratio: 10,
            ratio_free: 100,
            ..Limits::default()
        };
        for (compressed, out, good) in [
            (0, 0, true),
            (0, 100, true),
            (0, 101, false),
            (10, 200, true),
            (10, 201, false),
            (1000, 1000, true),
            (1000, 1001, false),
            (u64::MAX, 1000, true),
        ] {
            assert_eq!(
                limits.judge(compressed, out).is_ok(),
                good,
                "{compressed} → {out}"
            );
        }
    }
}
