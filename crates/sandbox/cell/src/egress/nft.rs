//! Rules of `nf_tables`, as its netlink interface wants them (`linux/netfilter/nf_tables.h`). No program is started: `nft`
//! takes longer to start than a sandbox.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::ioctl_fionbio;
use rustix::net::netlink::NETFILTER;

use super::netlink::{ACK, APPEND, CREATE, Messages, attribute, nested, open, text};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const NEW_CHAIN: u16 = NFTABLES << 8 | 3;
const NEW_RULE: u16 = NFTABLES << 8 | 6;
/// Rules for both versions of IP (`NFPROTO_INET`).
const INET: u8 = 1;
const LOCAL_OUT: u32 = 3;
/// Where destinations are changed (`NF_IP_PRI_NAT_DST`), and after that (`NF_IP_PRI_FILTER`).
const BEFORE: i32 = -100;
const AFTER: i32 = 0;

const TABLE: &str = "egress";
/// The group of `nfnetlink_log` in which is told what was refused.
const GROUP: u16 = 1;
/// How much of a packet is told, in bytes: the headers.
const BEGINNING: u32 = 64;
/// How many refused packets are told in a second; what exceeds it is refused unheard.
pub const TOLD: u64 = 50;

const ULOG_CONFIG: u16 = 4 << 8 | 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Hears from now on what the rules tell.
pub(super) fn listen() -> io::Result<OwnedFd> {
    let socket = open(Some(NETFILTER))?;
    let mut messages = Messages::default();
    let fixed = [0, 0, GROUP.to_be_bytes()[0], GROUP.to_be_bytes()[1]];
    // Bind to the group, and be told the beginnings of packets, each at once.
    messages.message(ULOG_CONFIG, ACK, &fixed, |to| attribute(to, 1, &[1]));
    messages.message(ULOG_CONFIG, ACK, &fixed, |to| {
        let mut mode = BEGINNING.to_be_bytes().to_vec();
        mode.extend([2, 0]);
        attribute(to, 2, &mode);
        attribute(to, 5, &1u32.to_be_bytes());
    });
    messages.send(&socket, 2)?;
    ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Turns connections to `caught` and questions to `resolver`, and refuses the rest.
pub(super) fn redirect(caught: u16, resolver: u16) -> io::Result<()> {
    let mut messages = Messages::default();
    let subsystem = NFTABLES.to_be_bytes();
    let batch = [0, 0, subsystem[0], subsystem[1]];
    messages.message(BATCH_BEGIN, 0, &batch, |_| {});
    messages.message(NEW_TABLE, CREATE, &[INET, 0, 0, 0], |to| {
        text(to, 1, TABLE);
        attribute(to, 2, &0u32.to_be_bytes());
    });
    chain(&mut messages, "turn", "nat", BEFORE);
    chain(&mut messages, "refuse", "filter", AFTER);
    for protocol in [UDP, TCP] {
        rule(&mut messages, "turn", 0, |rule| {
            rule.is_ipv4().protocol(protocol).port(53).turn(resolver);
        });
    }
    rule(&mut messages, "turn", 0, |rule| {
        rule.is_ipv4().is_not_loopback().protocol(TCP).turn(caught);
    });
    rule(&mut messages, "refuse", 0, |rule| {
        rule.is_ipv4().is_loopback().accept();
    });
    rule(&mut messages, "refuse", 0, |rule| {
        rule.is_ipv6().is_loopback_v6().accept();
    });
    rule(&mut messages, "refuse", 0, |rule| {
        rule.at_most(TOLD).tell();
    });
    // A stream would try again after a datagram's kind of refusal.
    rule(&mut messages, "refuse", 0, |rule| {
        rule.protocol(TCP).reset();
    });
    // The last one acknowledges all: what fails before it is told whether or not it was asked for.
    rule(&mut messages, "refuse", ACK, |rule| {
        rule.refuse();
    });
    messages.message(BATCH_END, 0, &batch, |_| {});
    messages.send(&open(Some(NETFILTER))?, 1)
}

fn chain(messages: &mut Messages, name: &str, kind: &str, priority: i32) {
    messages.message(NEW_CHAIN, CREATE, &[INET, 0, 0, 0], |to| {
        text(to, 1, TABLE);
        text(to, 3, name);
        nested(to, 4, |to| {
            attribute(to, 1, &LOCAL_OUT.to_be_bytes());
            attribute(to, 2, &priority.to_be_bytes());
        });
        // Accept: the last rule of `refuse` is what refuses, and says so.
        attribute(to, 5, &1u32.to_be_bytes());
        text(to, 7, kind);
    });
}

fn rule(messages: &mut Messages, chain: &str, flags: u16, write: impl FnOnce(&mut Rule)) {
    let mut rule = Rule(Vec::new());
    write(&mut rule);
    messages.message(NEW_RULE, CREATE | APPEND | flags, &[INET, 0, 0, 0], |to| {
        text(to, 1, TABLE);
        text(to, 2, chain);
        nested(to, 4, |to| to.extend_from_slice(&rule.0));
    });
}

/// The expressions of a rule: each goes on only when what it asks is so.
struct Rule(Vec<u8>);

/// The register through which values go (`NFT_REG_1`), and that of verdicts.
const VALUE: u32 = 1;
const VERDICT: u32 = 0;

impl Rule {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Vec<u8>)) -> &mut Rule {
        nested(&mut self.0, 1, |to| {
            text(to, 1, name);
            nested(to, 2, data);
        });
        self
    }

    /// What the kernel knows of the packet (`NFT_META_*`).
    fn meta(&mut self, key: u32) -> &mut Rule {
        self.expression("meta", |to| {
            attribute(to, 2, &key.to_be_bytes());
            attribute(to, 1, &VALUE.to_be_bytes());
        })
    }

    /// Bytes of the network's header (1) or the transport's (2).
    fn payload(&mut self, base: u32, offset: u32, length: u32) -> &mut Rule {
        self.expression("payload", |to| {
            for (kind, value) in [(1, VALUE), (2, base), (3, offset), (4, length)] {
                attribute(to, kind, &value.to_be_bytes());
            }
        })
    }

    fn compare(&mut self, operation: u32, value: &[u8]) -> &mut Rule {
        self.expression("cmp", |to| {
            attribute(to, 1, &VALUE.to_be_bytes());
            attribute(to, 2, &operation.to_be_bytes());
            nested(to, 3, |to| attribute(to, 1, value));
        })
    }

    fn is(&mut self, value: &[u8]) -> &mut Rule {
        self.compare(0, value)
    }

    fn is_not(&mut self, value: &[u8]) -> &mut Rule {
        self.compare(1, value)
    }

    fn is_ipv4(&mut self) -> &mut Rule {
        self.meta(15).is(&[IPV4])
    }

    fn is_ipv6(&mut self) -> &mut Rule {
        self.meta(15).is(&[IPV6])
    }

    fn protocol(&mut self, number: u8) -> &mut Rule {
        self.meta(16).is(&[number])
    }

    /// The destination's first byte says which network it is.
    fn is_loopback(&mut self) -> &mut Rule {
        self.payload(1, 16, 1).is(&[127])
    }

    fn is_not_loopback(&mut self) -> &mut Rule {
        self.payload(1, 16, 1).is_not(&[127])
    }

    fn is_loopback_v6(&mut self) -> &mut Rule {
        self.payload(1, 24, 16).is(&std::net::Ipv6Addr::LOCALHOST.octets())
    }

    fn port(&mut self, number: u16) -> &mut Rule {
        self.payload(2, 2, 2).is(&number.to_be_bytes())
    }

    /// To a port of the loopback device.
    fn turn(&mut self, port: u16) -> &mut Rule {
        self.expression("immediate", |to| {
            attribute(to, 1, &VALUE.to_be_bytes());
            nested(to, 2, |to| attribute(to, 1, &port.to_be_bytes()));
        })
        .expression("redir", |to| attribute(to, 1, &VALUE.to_be_bytes()))
    }

    fn accept(&mut self) -> &mut Rule {
        self.expression("immediate", |to| {
            attribute(to, 1, &VERDICT.to_be_bytes());
            nested(to, 2, |to| nested(to, 2, |to| attribute(to, 1, &1u32.to_be_bytes())));
        })
    }

    fn at_most(&mut self, each_second: u64) -> &mut Rule {
        self.expression("limit", |to| {
            attribute(to, 1, &each_second.to_be_bytes());
            attribute(to, 2, &1u64.to_be_bytes());
            attribute(to, 3, &u32::try_from(each_second).unwrap_or(u32::MAX).to_be_bytes());
            attribute(to, 4, &0u32.to_be_bytes());
        })
    }

    fn tell(&mut self) -> &mut Rule {
        self.expression("log", |to| {
            attribute(to, 1, &GROUP.to_be_bytes());
            attribute(to, 3, &BEGINNING.to_be_bytes());
        })
    }

    /// Whoever connects hears at once that nobody is there.
    fn reset(&mut self) -> &mut Rule {
        self.expression("reject", |to| attribute(to, 1, &1u32.to_be_bytes()))
    }

    /// The caller hears at once that it may not.
    fn refuse(&mut self) -> &mut Rule {
        self.expression("reject", |to| {
            attribute(to, 1, &2u32.to_be_bytes());
            attribute(to, 2, &[1]);
        })
    }
}
