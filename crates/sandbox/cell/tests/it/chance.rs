//! Changes that are the same in every run.

/// A generator of numbers (xorshift) with a seed.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// A number below another, which is not zero.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    /// Changes some bytes, and now and then cuts the end off or doubles a part.
    pub(crate) fn change(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            let any = u8::try_from(self.below(256)).unwrap();
            bytes[at] = [0, 0xff, b'/', b'.', b'"', b'{', any, bytes[at] ^ 1][self.below(8)];
        }
        match self.below(8) {
            0 => bytes.truncate(self.below(bytes.len()).max(1)),
            1 => {
                let part = bytes[self.below(bytes.len())..].to_vec();
                bytes.extend(part);
            }
            _ => {}
        }
        bytes
    }
}
