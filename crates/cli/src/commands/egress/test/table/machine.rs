//! The machine: sockets of the host, descriptors, processes and memory of those who serve.

use rustix::io::Errno;

use crate::commands::egress::test::attempt::{Attempt, Harm, Kind, Layer, Look, Shown};

pub(super) fn attempts() -> Vec<Attempt> {
    const NO: &[Errno] = &[Errno::PERM, Errno::ACCESS, Errno::SRCH, Errno::NOENT, Errno::NOSYS];
    let look = |name: &str, tries, look: Look, layer, shown| {
        Attempt::new(format!("machine.{name}"), tries).act(look).harm(Harm::Common).shown(layer, shown)
    };
    vec![
        Attempt::new("machine.abstract-socket", "reach an abstract unix socket of the host")
            .act(Kind::Abstract)
            .shown(Layer::Namespace, Shown::Errno(&[Errno::CONNREFUSED, Errno::PERM])),
        Attempt::new("machine.unix-socket", "reach a unix socket of the host by its path")
            .act(Kind::Path)
            .shown(Layer::Namespace, Shown::Errno(&[Errno::NOENT, Errno::ACCESS])),
        Attempt::new("machine.proxy-port", "listen in the place of the proxy")
            .act(Kind::TakeProxy)
            .shown(Layer::Namespace, Shown::Errno(&[Errno::ADDRINUSE])),
        look(
            "descriptors",
            "use a socket that was left open by those who serve",
            Look::Descriptors,
            Layer::Calls,
            Shown::Said("no descriptor but the usual three"),
        ),
        look(
            "processes",
            "find the worker among the processes",
            Look::Processes,
            Layer::Namespace,
            Shown::Said("0 workers among the processes"),
        ),
        look("memory", "open the memory of process 1", Look::Memory, Layer::Calls, Shown::Errno(NO)),
        look("environment", "read the environment of process 1", Look::Environment, Layer::Calls, Shown::Errno(NO)),
        look("links", "list the descriptors of process 1", Look::OthersDescriptors, Layer::Calls, Shown::Errno(NO)),
        look(
            "steal",
            "take descriptors of process 1, as a debugger may (pidfd_getfd)",
            Look::Steal,
            Layer::Calls,
            Shown::Errno(NO),
        ),
        look("root", "look at the file system through process 1", Look::Root, Layer::Calls, Shown::Errno(NO)),
        look(
            "variables",
            "find a credential in one's own environment",
            Look::OwnEnvironment,
            Layer::Broker,
            Shown::Said("HEADER_TOKEN=palisade_"),
        ),
        look(
            "files",
            "find the key of the session's authority, or a credential, in files",
            Look::Given,
            Layer::Broker,
            Shown::Said("0 private keys"),
        ),
    ]
}
