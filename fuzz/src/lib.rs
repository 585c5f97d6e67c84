//! What fuzz targets share: seeds for their corpora, a directory with something beside it that must stay as it is, and headers
//! of archives whose checksums fit.

pub mod scene;
pub mod seed;

pub use scene::{Scene, contents};
pub use seed::plant;

/// Gives every header of a tar the checksum that fits: else nearly every change of one would end at its checksum.
pub fn repair(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for header in bytes.chunks_exact_mut(512) {
        if &header[257..262] == b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}
