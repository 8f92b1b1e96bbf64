//! The ledger: what it keeps, and how damage shows.

use super::*;

fn issued(serial: &str, at: OffsetDateTime, life: Duration) -> Issued {
    Issued {
        serial: serial.to_owned(),
        identity: format!("spiffe://td/ns/a/sa/{serial}"),
        issued_at: at,
        not_before: at,
        not_after: at + life,
        authenticator: "test".to_owned(),
        peer: None,
        key_fingerprint: "00".to_owned(),
    }
}

#[tokio::test]
async fn recorded_entries_survive_reopening_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
    let day = Duration::from_secs(86400);
    {
        let store = crate::testing::open_store(folder.path());
        let (ledger, writer) = Ledger::open(&store, day).unwrap();
        let task = proto_component::task::spawn("ledger", writer.run(Drain::never()));
        for (serial, at) in [("01", now), ("02", now + day), ("03", now + day * 2)] {
            ledger.record(&issued(serial, at, day)).await.unwrap();
        }
        drop(ledger);
        task.await.unwrap();
    }
    let store = crate::testing::open_store(folder.path());
    let (ledger, writer) = Ledger::open(&store, day).unwrap();
    let serials =
        |list: Vec<Issued>| -> Vec<String> { list.into_iter().map(|entry| entry.serial).collect() };
    assert_eq!(
        serials(ledger.newest(10, None).unwrap()),
        ["03", "02", "01"]
    );
    assert_eq!(serials(ledger.newest(2, None).unwrap()), ["03", "02"]);
    let one = ledger.newest(10, Some("spiffe://td/ns/a/sa/01")).unwrap();
    assert_eq!(serials(one), ["01"]);
    assert_eq!(writer.prune(now + day * 3).unwrap(), 1);
    assert_eq!(ledger.len(), 2);
    assert_eq!(ledger.verify().unwrap(), 2);
    assert_eq!(ledger.find("02").unwrap().unwrap().serial, "02");
    assert!(ledger.find("01").unwrap().is_none());
}

#[tokio::test]
async fn a_changed_a_lost_and_an_inserted_entry_show() {
    let folder = tempfile::tempdir().unwrap();
    let store = crate::testing::open_store(folder.path());
    let day = Duration::from_secs(86400);
    let (ledger, writer) = Ledger::open(&store, day).unwrap();
    proto_component::task::spawn("ledger", writer.run(Drain::never()));
    let now = OffsetDateTime::now_utc();
    for serial in ["01", "02", "03", "04"] {
        ledger.record(&issued(serial, now, day)).await.unwrap();
    }
    assert_eq!(ledger.verify().unwrap(), 4);
    let key = 2_u64.to_be_bytes();
    let good = ledger.tree.get(key).unwrap().unwrap();
    let mut changed = good.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    ledger.tree.insert(key, changed).unwrap();
    assert!(matches!(ledger.verify(), Err(LedgerError::Damaged(2))));
    ledger.tree.remove(key).unwrap();
    assert!(matches!(ledger.verify(), Err(LedgerError::Damaged(3))));
    ledger.tree.insert(key, &good).unwrap();
    assert_eq!(ledger.verify().unwrap(), 4);
    ledger.tree.insert(4_u64.to_be_bytes(), &good).unwrap();
    assert!(matches!(ledger.verify(), Err(LedgerError::Damaged(4))));
    ledger.tree.insert(4_u64.to_be_bytes(), b"short").unwrap();
    assert!(ledger.verify().is_err());
    assert_eq!(ledger.newest(10, None).unwrap().len(), 4);
}
