//! What is wrong with a configuration is named by its field, and no value is repeated.

use palisade_vault::VaultConfig;

use crate::rig::CANARY;

#[test]
fn mistakes_are_named_and_values_not_repeated() {
    let vault = |more: &str| {
        format!(
            "vault:\n  prod:\n    address: https://v.example\n    auth: {{method: jwt, role: r, token: 'env:T'}}\n{more}"
        )
    };
    VaultConfig::parse("").unwrap();
    VaultConfig::parse("# nothing\n").unwrap();
    VaultConfig::parse(&vault("    mounts: {secret: kv, db: dynamic}\n    keep: 30\n")).unwrap();
    for (yaml, needles) in [
        ("vaults: {}".to_owned(), vec!["unknown field `vaults`"]),
        (vault("    kep: 3\n"), vec!["`vault.prod", "unknown field `kep`"]),
        (vault("    keep: CANARY\n"), vec!["`vault.prod.keep`", "expected a whole number"]),
        (
            vault("    mounts: {secret: CANARY-no}\n").replace("CANARY-no", "kv2"),
            vec!["`vault.prod.mounts.secret`", "kv2"],
        ),
        (
            vault("    mounts: {secret: hvs.CANARY}\n"),
            vec!["`vault.prod.mounts.secret`", "unknown variant, expected `kv`"],
        ),
        (vault("    hvs.CANARY: x\n"), vec!["unknown field, expected"]),
        (vault("    mounts: {/secret: kv}\n"), vec!["`vault.prod.mounts`", "without slashes"]),
        (vault("").replace("https", "http"), vec!["`vault.prod.address`", "use https"]),
        (vault("").replace("https://", "https://CANARY:CANARY@"), vec!["`vault.prod.address`", "user name"]),
        (vault("").replace("https://v.example", "CANARY"), vec!["`vault.prod.address`", "no http or https address"]),
        (vault("").replace("env:T", "hvs.CANARY"), vec!["`vault.prod.auth`: write where", "never the secret itself"]),
        (vault("").replace("prod", "a b"), vec!["vault.a b", "name it otherwise"]),
        ("sealed: {file: secrets.age, key: 'file:/k'}".to_owned(), vec!["`sealed.file`", "absolute path"]),
        ("sealed: {file: /s}".to_owned(), vec!["missing field `key`"]),
        (
            "env: {variables: CANARY}".to_owned(),
            vec!["`env.variables`", "a value of another kind, expected a sequence"],
        ),
        ("exec: {x: {command: []}}".to_owned(), vec!["`exec.x.command`", "is empty"]),
        ("exec: {x: {command: [helper]}}".to_owned(), vec!["`exec.x.command`", "absolute path"]),
        ("exec: {x: {command: [/bin/true], timeout: 100}}".to_owned(), vec!["`exec.x.timeout`", "1 to 30"]),
        (
            "azure: {k: {address: 'https://k', auth: {method: managed_identity, endpoint: 'http://10.0.0.1'}}}"
                .to_owned(),
            vec!["`azure.k.auth.endpoint`", "use https"],
        ),
        ("a: [".to_owned(), vec!["cannot be used"]),
    ] {
        let error = VaultConfig::parse(&yaml).map(|_| ()).expect_err(&yaml);
        let text = error.to_string();
        for needle in needles {
            assert!(text.contains(needle), "`{needle}` is not in: {text}");
        }
        assert!(!format!("{text} {error:?}").contains(CANARY), "{text}");
    }
}
