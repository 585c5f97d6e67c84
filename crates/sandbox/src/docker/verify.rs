//! Whether a container is as it was ordered, by what the engine says of it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::order::Order;
use crate::Error;

/// Compares an order with the engine's answer to an inspection, field by field.
pub(super) fn verify(order: &Order, found: &Value, podman: bool) -> Result<(), Error> {
    let host = |name: &str| &found["HostConfig"][name];
    let asked = |name: &str| &order.body["HostConfig"][name];
    let differs = |field, wanted: &Value, found: &Value| {
        // A profile is long, and its beginning says what it is.
        let short = |value: &Value| value.to_string().chars().take(200).collect();
        Err(Error::Hardening { field, wanted: short(wanted), found: short(found) })
    };
    let one_of = |field, allowed: &[&str]| {
        let now = host(field).as_str().unwrap_or("");
        if allowed.contains(&now) { Ok(()) } else { differs(field, &json!(allowed), host(field)) }
    };
    for field in [
        "ReadonlyRootfs",
        "AutoRemove",
        "NetworkMode",
        "Memory",
        "MemorySwap",
        "PidsLimit",
        "NanoCpus",
        "Runtime",
        "UsernsMode",
        "MaskedPaths",
        "ReadonlyPaths",
    ] {
        let wanted = asked(field);
        if !wanted.is_null() && wanted != host(field) {
            return differs(field, wanted, host(field));
        }
    }
    if host("Privileged").as_bool() != Some(false) {
        return differs("Privileged", &json!(false), host("Privileged"));
    }
    for field in ["CapAdd", "Devices", "DeviceRequests", "DeviceCgroupRules", "VolumesFrom", "GroupAdd", "PortBindings"]
    {
        if !is_empty(host(field)) {
            return differs(field, &json!([]), host(field));
        }
    }
    // Podman names each capability that would have been there.
    let dropped = host("CapDrop");
    let all = strings(dropped).any(|name| name == "ALL" || name == "CAP_ALL");
    if !(all || podman && !is_empty(dropped)) {
        return differs("CapDrop", asked("CapDrop"), dropped);
    }
    let given: BTreeSet<&str> = strings(host("SecurityOpt")).collect();
    // Podman does not say what it masks.
    let wanted: BTreeSet<&str> = strings(asked("SecurityOpt")).filter(|word| !word.starts_with("mask=")).collect();
    if !wanted.is_subset(&given) || given.iter().any(|word| word.ends_with("unconfined") || word.contains("disable")) {
        return differs("SecurityOpt", asked("SecurityOpt"), host("SecurityOpt"));
    }
    // Podman's word for one that others could only join if they were told to.
    one_of("IpcMode", if podman { &["private", "shareable"] } else { &["private"] })?;
    one_of("CgroupnsMode", if podman { &["private", ""] } else { &["private"] })?;
    one_of("PidMode", &["", "private"])?;
    one_of("UTSMode", &["", "private"])?;
    if host("UsernsMode") == "host" {
        return differs("UsernsMode", &json!("of the engine"), host("UsernsMode"));
    }
    for (place, options) in asked("Tmpfs").as_object().into_iter().flatten() {
        let now = host("Tmpfs")[place].as_str().unwrap_or("");
        let has: BTreeSet<&str> = now.split(',').collect();
        if !options.as_str().unwrap_or("").split(',').all(|option| has.contains(option)) {
            return differs("Tmpfs", options, &host("Tmpfs")[place]);
        }
    }
    let wanted: BTreeSet<(&str, &str, bool)> =
        order.binds.iter().map(|(source, place, writable)| (source.as_str(), place.as_str(), *writable)).collect();
    let mounts = found["Mounts"].as_array().into_iter().flatten().filter(|mount| mount["Type"] != "tmpfs");
    let text = |value: &'_ Value| value.as_str().unwrap_or("").to_owned();
    let given: BTreeSet<(String, String, bool)> = mounts
        .map(|mount| (text(&mount["Source"]), text(&mount["Destination"]), mount["RW"].as_bool().unwrap_or(true)))
        .collect();
    let same = given.len() == wanted.len()
        && given.iter().all(|(source, place, writable)| wanted.contains(&(source, place, *writable)));
    if !same {
        return differs("Mounts", &json!(wanted), &json!(given));
    }
    for field in ["User", "Entrypoint", "Cmd"] {
        if order.body[field] != found["Config"][field] {
            return differs(field, &order.body[field], &found["Config"][field]);
        }
    }
    let image = found["Image"].as_str().unwrap_or("");
    let wanted = order.body["Image"].as_str().unwrap_or("");
    if image.trim_start_matches("sha256:") != wanted.trim_start_matches("sha256:") {
        return differs("Image", &order.body["Image"], &found["Image"]);
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            body: json!({
                "Image": "sha256:ab", "User": "1000:1000", "Entrypoint": ["/cell"], "Cmd": ["stdio"],
                "HostConfig": {
                    "ReadonlyRootfs": true, "AutoRemove": true, "NetworkMode": "none", "Memory": 5, "MemorySwap": 5,
                    "PidsLimit": 7, "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges", "seccomp={}"],
                    "Tmpfs": {"/tmp": "rw,nosuid,size=9"}, "Runtime": "runsc", "UsernsMode": "keep-id",
                    "MaskedPaths": ["/sys"], "ReadonlyPaths": ["/proc/sys"],
                },
            }),
            binds: vec![("/w".to_owned(), "/workspace".to_owned(), true)],
        }
    }

    fn made() -> Value {
        json!({
            "Image": "sha256:ab",
            "Config": {"User": "1000:1000", "Entrypoint": ["/cell"], "Cmd": ["stdio"]},
            "Mounts": [{"Type": "bind", "Source": "/w", "Destination": "/workspace", "RW": true}],
            "HostConfig": {
                "ReadonlyRootfs": true, "AutoRemove": true, "NetworkMode": "none", "Memory": 5, "MemorySwap": 5,
                "PidsLimit": 7, "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges", "seccomp={}"],
                "Tmpfs": {"/tmp": "rw,nosuid,size=9"}, "IpcMode": "private", "CgroupnsMode": "private",
                "Privileged": false, "Devices": null, "Runtime": "runsc", "UsernsMode": "keep-id",
                "MaskedPaths": ["/sys"], "ReadonlyPaths": ["/proc/sys"],
            },
        })
    }

    #[test]
    fn what_an_engine_left_out_or_added_is_found() {
        verify(&order(), &made(), false).unwrap();
        for (pointer, value, field) in [
            ("/HostConfig/ReadonlyRootfs", json!(false), "ReadonlyRootfs"),
            ("/HostConfig/NetworkMode", json!("bridge"), "NetworkMode"),
            ("/HostConfig/Runtime", json!("runc"), "Runtime"),
            ("/HostConfig/UsernsMode", json!(""), "UsernsMode"),
            ("/HostConfig/Memory", json!(0), "Memory"),
            ("/HostConfig/MemorySwap", json!(-1), "MemorySwap"),
            ("/HostConfig/PidsLimit", Value::Null, "PidsLimit"),
            ("/HostConfig/Privileged", json!(true), "Privileged"),
            ("/HostConfig/CapDrop", json!([]), "CapDrop"),
            ("/HostConfig/SecurityOpt", json!(["no-new-privileges"]), "SecurityOpt"),
            (
                "/HostConfig/SecurityOpt",
                json!(["no-new-privileges", "seccomp={}", "apparmor=unconfined"]),
                "SecurityOpt",
            ),
            ("/HostConfig/IpcMode", json!("host"), "IpcMode"),
            ("/HostConfig/MaskedPaths", json!([]), "MaskedPaths"),
            ("/HostConfig/ReadonlyPaths", json!(["/proc/bus"]), "ReadonlyPaths"),
            ("/HostConfig/CgroupnsMode", json!("host"), "CgroupnsMode"),
            ("/HostConfig/Tmpfs", json!({"/tmp": "rw,nosuid"}), "Tmpfs"),
            ("/HostConfig/Devices", json!([{"PathOnHost": "/dev/kvm"}]), "Devices"),
            ("/Config/User", json!(""), "User"),
            ("/Config/Entrypoint", json!(["/bin/sh"]), "Entrypoint"),
            ("/Image", json!("sha256:cd"), "Image"),
            ("/Mounts", json!([]), "Mounts"),
            ("/Mounts/0/Source", json!("/"), "Mounts"),
        ] {
            let mut found = made();
            *found.pointer_mut(pointer).unwrap() = value;
            match verify(&order(), &found, false) {
                Err(Error::Hardening { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{pointer}: {other:?}"),
            }
        }
        let mut found = made();
        found["HostConfig"]["CapAdd"] = json!(["SYS_ADMIN"]);
        assert!(verify(&order(), &found, false).is_err());
        found = made();
        found["HostConfig"]["PidMode"] = json!("host");
        assert!(verify(&order(), &found, false).is_err());
    }
}
