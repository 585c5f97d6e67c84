//! Addresses that are dialled: which of them are not on the public internet.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What an address is for (RFC 6890 and its registries, and the places of cloud metadata services).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Range {
    /// The public internet.
    Public,
    /// RFC 1918.
    Private,
    /// Behind a carrier's NAT: 100.64.0.0/10.
    Shared,
    /// fc00::/7.
    UniqueLocal,
    /// fec0::/10, deprecated.
    SiteLocal,
    /// This machine.
    Loopback,
    /// This link.
    LinkLocal,
    /// Where clouds hand out credentials.
    Metadata,
    /// For documents.
    Documentation,
    /// IPv4 wrapped for a relay or translator whose way cannot be known: 6to4, Teredo, local NAT64, IPv4-compatible.
    Transition,
    /// For protocols, for the future, or not given to anybody.
    Reserved,
    /// 198.18.0.0/15, in which the resolver gives names their addresses.
    Synthetic,
    /// To many.
    Multicast,
    /// To all.
    Broadcast,
    /// To none.
    Unspecified,
}

impl Range {
    /// The range of an address. What translates to an IPv4 address in a known way has that address's range.
    pub fn of(address: IpAddr) -> Range {
        match address.to_canonical() {
            IpAddr::V4(address) => v4(address),
            IpAddr::V6(address) => v6(address),
        }
    }

    /// Whether `private: true` opens it.
    pub fn is_private(self) -> bool {
        matches!(self, Range::Private | Range::Shared | Range::UniqueLocal | Range::SiteLocal)
    }

    /// Whether nothing opens it: no connection to one party can be made there.
    pub fn is_never(self) -> bool {
        matches!(self, Range::Synthetic | Range::Multicast | Range::Broadcast | Range::Unspecified)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Range::Public => "a public address",
            Range::Private => "a private address",
            Range::Shared => "an address behind a carrier's NAT",
            Range::UniqueLocal => "a unique local address",
            Range::SiteLocal => "a site-local address",
            Range::Loopback => "a loopback address",
            Range::LinkLocal => "a link-local address",
            Range::Metadata => "the address of a cloud metadata service",
            Range::Documentation => "an address for documentation",
            Range::Transition => "an IPv4 address wrapped in IPv6",
            Range::Reserved => "a reserved address",
            Range::Synthetic => "an address of the sandbox's own resolver",
            Range::Multicast => "a multicast address",
            Range::Broadcast => "the broadcast address",
            Range::Unspecified => "the unspecified address",
        })
    }
}

fn v4(address: Ipv4Addr) -> Range {
    match address.octets() {
        // AWS and those that copy it, AWS ECS and EKS, Azure's WireServer, Alibaba Cloud, Oracle Cloud at Rest.
        [169, 254, 169, 253 | 254]
        | [169, 254, 170, 2 | 23]
        | [168, 63, 129, 16]
        | [100, 100, 100, 200]
        | [192, 0, 0, 192] => Range::Metadata,
        [0, ..] => Range::Unspecified,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Range::Private,
        [100, 64..=127, ..] => Range::Shared,
        [127, ..] => Range::Loopback,
        [169, 254, ..] => Range::LinkLocal,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Range::Documentation,
        [192, 0, 0, _] => Range::Reserved,
        [192, 88, 99, _] => Range::Transition,
        [198, 18..=19, ..] => Range::Synthetic,
        [224..=239, ..] => Range::Multicast,
        [255, 255, 255, 255] => Range::Broadcast,
        [240..=255, ..] => Range::Reserved,
        _ => Range::Public,
    }
}

fn v6(address: Ipv6Addr) -> Range {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Range::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Range::Loopback,
        // AWS, Google Cloud.
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254 | 0x0253 | 0x0023] | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254] => {
            Range::Metadata
        }
        // NAT64 with the well-known prefix (RFC 6052) leads to the IPv4 address inside.
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] => v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        [0x0064, 0xff9b, 1, ..] | [0, 0, 0, 0, 0 | 0xffff, ..] | [0x2001, 0, ..] | [0x2002, ..] => Range::Transition,
        [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => Range::Documentation,
        [0x2001, 0..=0x01ff, ..] => Range::Reserved,
        [0xfc00..=0xfdff, ..] => Range::UniqueLocal,
        [0xfe80..=0xfebf, ..] => Range::LinkLocal,
        [0xfec0..=0xfeff, ..] => Range::SiteLocal,
        [0xff00..=0xffff, ..] => Range::Multicast,
        [0x2000..=0x3fff, ..] => Range::Public,
        _ => Range::Reserved,
    }
}

/// A block of addresses: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// Its first address.
    network: IpAddr,
    /// How many leading bits are fixed.
    bits: u8,
}

/// Why something is not a block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// Not an address, or not a number of bits behind the slash.
    #[error("it is no IP address and no block such as 10.0.0.0/8")]
    Syntax,
    /// `10.1.2.3/8`.
    #[error("it has bits beyond its length: the block is {0}")]
    Bits(Block),
    /// Nothing in it can be dialled.
    #[error("it is {0}, which nothing can be allowed to dial")]
    Never(Range),
}

impl Block {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (u32::from(network) ^ u32::from(address)).checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (u128::from(network) ^ u128::from(address)).checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether it names the address: a special range is opened only by a block that lies in it, so that 0.0.0.0/0 opens neither
    /// loopback nor private networks, and metadata services only by their very address.
    pub fn names(&self, address: IpAddr) -> bool {
        if !self.contains(address) {
            return false;
        }
        match Range::of(address) {
            Range::Public => true,
            range if range.is_never() => false,
            Range::Metadata => self.is_single(),
            range => self.is_single() || (Range::of(self.network) == range && Range::of(self.last()) == range),
        }
    }

    /// Its first address, and how many leading bits are fixed.
    pub(super) fn parts(&self) -> (IpAddr, u8) {
        (self.network, self.bits)
    }

    fn is_single(&self) -> bool {
        self.bits == if self.network.is_ipv4() { 32 } else { 128 }
    }

    fn last(&self) -> IpAddr {
        match self.network {
            IpAddr::V4(network) => {
                Ipv4Addr::from(u32::from(network) | u32::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0)).into()
            }
            IpAddr::V6(network) => {
                Ipv6Addr::from(u128::from(network) | u128::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0)).into()
            }
        }
    }

    fn first(&self) -> IpAddr {
        match self.network {
            IpAddr::V4(network) => {
                Ipv4Addr::from(u32::from(network) & !u32::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0)).into()
            }
            IpAddr::V6(network) => {
                Ipv6Addr::from(u128::from(network) & !u128::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0)).into()
            }
        }
    }
}

impl FromStr for Block {
    type Err = BlockError;

    fn from_str(text: &str) -> Result<Block, BlockError> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| BlockError::Syntax)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) if !bits.is_empty() && bits.len() <= 3 && bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse::<u8>().ok().filter(|bits| *bits <= most).ok_or(BlockError::Syntax)?
            }
            Some(_) => return Err(BlockError::Syntax),
        };
        // Compared are addresses in their one form, in which no IPv4 address is written as IPv6.
        let (network, bits) = match address.to_canonical() {
            canonical if canonical.is_ipv4() == address.is_ipv4() => (address, bits),
            canonical => (canonical, bits.checked_sub(96).ok_or(BlockError::Syntax)?),
        };
        let block = Block { network, bits };
        let first = block.first();
        if first != network {
            return Err(BlockError::Bits(Block { network: first, bits }));
        }
        let range = Range::of(network);
        if range.is_never() && range == Range::of(block.last()) {
            return Err(BlockError::Never(range));
        }
        Ok(block)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.network)?;
        if self.is_single() { Ok(()) } else { write!(f, "/{}", self.bits) }
    }
}
