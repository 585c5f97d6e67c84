//! A stream of frames, as either end hears it. Asserts: no panic, no frame beyond the limit, and what is understood is written
//! as what means the same.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use palisade_cell::{
    Claim, MAX_FRAME, Nursery, Ready, Reply, Request, Setup, Wanted, check_length, decode, encode, read_frame,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(init: palisade_fuzz::plant(&seeds()), |data: &[u8]| {
    // Not framed: what a frame holds is then the whole input.
    frame(data);
    let mut stream = Cursor::new(data);
    while let Ok(Some(bytes)) = read_frame(&mut stream) {
        assert!((4..=MAX_FRAME).contains(&bytes.len()));
        frame(&bytes);
    }
});

fn frame(bytes: &[u8]) {
    same::<Nursery>(bytes, true);
    same::<Setup>(bytes, true);
    same::<Claim>(bytes, true);
    same::<Ready>(bytes, true);
    // Numbers of any JSON may lose their last digit when they are read.
    let exact = |text: &[u8]| !text.windows(6).any(|it| it == br#""tool""#);
    same::<Request>(bytes, exact(bytes));
    same::<Reply>(bytes, exact(bytes));
}

/// Decodes, and compares what is written of it with what is written of that.
fn same<T: Serialize + DeserializeOwned>(bytes: &[u8], exact: bool) {
    let Ok((header, raw)) = decode::<T>(bytes) else { return };
    // Text may be longer once it is escaped.
    let Ok(first) = encode(&header, raw) else { return };
    let length = check_length(*first.first_chunk().expect("it has a length")).expect("it is a frame");
    assert_eq!(length, first.len() - 4);
    let (again, same) = decode::<T>(&first[4..]).expect("what was written can be read");
    assert_eq!(same, raw);
    if exact {
        assert_eq!(encode(&again, same).expect("as before"), first);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let frames = [
        r#"{"version":4,"root":{"layers":[{"path":"/l"},{"descriptor":1}],"binds":[{"source":{"path":"/s"},"target":"/t","writable":true,"directory":true,"optional":false,"devices":false}],"links":[["a","b"]],"files":[["f","c"]]}}"#,
        r#"{"version":4,"root":null,"tmp_bytes":1,"shm_bytes":2,"rlimits":[[7,8]],"landlock":true,"leave_early":false}"#,
        r#"{"binds":[],"overlays":[{"lower":[{"descriptor":0}],"upper":{"path":"/u"},"target":"/w"}],"hostname":"h","env":[["A","b"]],"roots":[["/workspace",true]]}"#,
        r#"{"built":{"notes":["n"]}}"#,
        r#"{"up":{"landlock_abi":7}}"#,
        r#"{"failed":{"step":"s","errno":1,"detail":"d"}}"#,
        r#"{"op":"tool","id":1,"name":"grep","input":{"pattern":"x","path":"/workspace"},"timeout_ms":5}"#,
        r#"{"op":"attach","id":1,"process":2,"from":3,"hold":true}"#,
        r#"{"op":"connect","id":1,"port":80}"#,
        r#"{"op":"processes","id":1}"#,
        r#"{"op":"stdin","id":1}"#,
        r#"{"op":"resize","id":1,"size":{"rows":2,"cols":3}}"#,
        r#"{"op":"signal","id":1,"signal":9}"#,
        r#"{"op":"window","id":1,"bytes":2}"#,
        r#"{"op":"cancel","id":1}"#,
        r#"{"op":"tool","id":1,"content":[{"type":"text","text":"t"}],"is_error":false,"cpu_us":null}"#,
        r#"{"op":"output","id":1,"stderr":true,"offset":2}"#,
        r#"{"op":"taken","id":1,"bytes":2}"#,
        r#"{"op":"exec_failed","id":1,"message":"m"}"#,
    ];
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    let mut all = Vec::new();
    let wanted = Request::Exec(Box::new(Wanted { argv: vec!["a".to_owned()], ..Wanted::default() }));
    let process = palisade_cell::Process { end: Some(palisade_cell::End::default()), ..Default::default() };
    let exit = Reply::Exit { id: 1, end: palisade_cell::End::default() };
    let made = [
        encode(&wanted, b"").expect("it is short"),
        encode(&Reply::Processes { id: 1, processes: vec![process] }, b"").expect("it is short"),
        encode(&exit, b"").expect("it is short"),
    ];
    let written = frames.iter().map(|text| {
        let header: serde_json::Value = serde_json::from_str(text).expect("it is JSON");
        encode(&header, b"raw").expect("it is short")
    });
    for frame in written.chain(made) {
        all.extend_from_slice(&frame);
        seeds.push(frame[4..].to_vec());
        seeds.push(frame);
    }
    seeds.push(all);
    seeds
}
