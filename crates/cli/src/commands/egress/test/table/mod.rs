//! The attempts, and the controls that show that they could succeed.

mod addresses;
mod answers;
mod authority;
mod controls;
mod credentials;
mod datagrams;
mod machine;
mod requests;

use std::sync::LazyLock;

use super::attempt::Attempt;

/// All of them, in the order in which they are shown.
pub(super) fn all() -> &'static [Attempt] {
    static ALL: LazyLock<Vec<Attempt>> = LazyLock::new(|| {
        let mut all = addresses::attempts();
        all.extend(authority::attempts());
        all.extend(requests::attempts());
        all.extend(datagrams::attempts());
        all.extend(machine::attempts());
        all.extend(credentials::attempts());
        all.extend(answers::attempts());
        all.extend(controls::attempts());
        all
    });
    &ALL
}
