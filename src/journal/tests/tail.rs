//! What a power cut can leave of the newest segment.

use proptest::prelude::*;

use super::*;

#[test]
fn a_journal_torn_at_any_byte_keeps_every_whole_record() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, ends) = small(folder.path(), |_| 0);
    let path = only(folder.path());
    for cut in ends[0]..=bytes.len() {
        fs::write(&path, &bytes[..cut]).unwrap();
        let kept = ends.iter().filter(|&&end| end <= cut).count() - 1;
        let recovered = recover(&OsDisk, folder.path()).unwrap();
        assert_eq!(recovered.last.map_or(0, |no| no.0), kept as u64, "cut at {cut}");
        assert_eq!(recovered.cut.is_some(), !ends.contains(&cut), "cut at {cut}");
        assert_eq!(records(folder.path()), (1..=kept as u64).collect::<Vec<_>>());
        assert!(recover(&OsDisk, folder.path()).unwrap().cut.is_none(), "recovery is done in one go");
    }
    // Torn within the header or the snapshot, before any record: the segment is set aside.
    for cut in 0..ends[0] {
        fs::write(&path, &bytes[..cut]).unwrap();
        let recovered = recover(&OsDisk, folder.path()).unwrap();
        assert!(recovered.segments.is_empty() && recovered.abandoned.is_some(), "cut at {cut}");
    }
}

#[test]
fn any_subset_of_unsynced_pages_may_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
    let mut end_of = vec![journal.segment_bytes()];
    for n in 1..=24u64 {
        // From record 5 on, records say that 1 to 4 are durable.
        let synced = if n > 4 { 4 } else { 0 };
        journal.append(&record(n, synced, 1_500), RecordNo(n)).unwrap();
        end_of.push(journal.segment_bytes());
    }
    journal.close().unwrap();
    let path = only(folder.path());
    let bytes = fs::read(&path).unwrap();
    let first_page = usize::try_from(end_of[4]).unwrap().div_ceil(4_096);
    let pages = bytes.len().div_ceil(4_096) - first_page;
    assert!(pages >= 6, "only {pages} pages to lose");
    for lost in 0..(1u32 << pages) {
        let mut damaged = bytes.clone();
        for page in (0..pages).filter(|page| lost & (1 << page) != 0) {
            let from = (first_page + page) * 4_096;
            let to = (from + 4_096).min(damaged.len());
            damaged[from..to].fill(0);
        }
        fs::write(&path, &damaged).unwrap();
        let whole = (1..=24)
            .take_while(|&n| {
                let (from, to) = (end_of[n - 1] as usize, end_of[n] as usize);
                damaged[from..to] == bytes[from..to]
            })
            .count();
        let recovered = recover(&OsDisk, folder.path()).unwrap();
        assert_eq!(recovered.last, Some(RecordNo(whole as u64)), "lost {lost:b}");
        assert!(whole >= 4);
    }
}

#[test]
fn damage_below_what_was_durable_stops_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, ends) = small(folder.path(), |n| n - 1);
    let path = only(folder.path());
    for broken in 1..=3usize {
        let mut damaged = bytes.clone();
        damaged[ends[broken - 1] + 15] ^= 1;
        fs::write(&path, &damaged).unwrap();
        match recover(&OsDisk, folder.path()) {
            Err(error @ RecoverError::Damage { offset, number, synced, .. }) => {
                assert_eq!(
                    (offset, number, synced),
                    (ends[broken - 1] as u64, RecordNo(broken as u64), RecordNo(4))
                );
                assert!(error.hint().contains("`lamplighter journal repair`"));
                assert!(error.to_string().contains("0000000000000001.ltj"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read(&path).unwrap(), damaged);
        let report = check::check(folder.path()).unwrap();
        assert_eq!((report.damaged, report.synced), (1, RecordNo(4)), "{report:?}");
        assert!(report.segments[0].trouble.as_ref().is_some_and(|t| t.contains("damaged")), "{report:?}");
    }
    // The last record is above what any frame calls durable.
    let mut damaged = bytes.clone();
    damaged[ends[4] + 15] ^= 1;
    fs::write(&path, &damaged).unwrap();
    assert_eq!(recover(&OsDisk, folder.path()).unwrap().last, Some(RecordNo(4)));
}

#[test]
fn a_damaged_journal_is_repaired_on_demand_and_what_was_cut_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (mut bytes, ends) = small(folder.path(), |n| n - 1);
    bytes[ends[2] + 15] ^= 1; // record 3
    fs::write(only(folder.path()), &bytes).unwrap();
    assert!(recover(&OsDisk, folder.path()).is_err());
    let recovered = repair(&OsDisk, folder.path()).unwrap();
    let cut = recovered.cut.unwrap();
    assert_eq!((recovered.last, cut.records), (Some(RecordNo(2)), 2));
    // The damaged one is kept as it was; what stands in its place is new.
    assert_eq!(fs::read(folder.path().join("cut/0000000000000001.ltj.damaged-1")).unwrap(), bytes);
    assert_eq!(fs::read(only(folder.path())).unwrap(), &bytes[..ends[2]]);
    goes_on(folder.path(), "repaired");
}

#[test]
fn text_that_looks_like_a_record_makes_no_promise() {
    // What a user sent holds whole frames that call everything durable; the record that carries it is torn.
    for (number, synced) in [(u64::MAX, u64::MAX), (1 << 40, 9), (9_000, 8_999), (3, 3), (3, u64::MAX)] {
        let folder = tempfile::tempdir().unwrap();
        let mut body = 0u64.to_le_bytes().to_vec();
        body.extend(record(number, synced, 4));
        let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Always).unwrap();
        journal.append(&record(1, 0, 9), RecordNo(1)).unwrap();
        let at = usize::try_from(journal.segment_bytes()).unwrap();
        let mut frame = Vec::new();
        frame::encode(Kind::Record, RecordNo(2), &body, &mut frame);
        journal.append(&frame, RecordNo(2)).unwrap();
        journal.close().unwrap();
        let mut bytes = fs::read(only(folder.path())).unwrap();
        bytes[at + 20] ^= 1;
        fs::write(only(folder.path()), &bytes).unwrap();
        let recovered = recover(&OsDisk, folder.path()).unwrap();
        assert_eq!(recovered.last, Some(RecordNo(1)), "{number} {synced}");
    }
}

#[test]
fn frames_far_behind_a_hole_are_found() {
    // Farther than the window that is held in memory.
    let folder = tempfile::tempdir().unwrap();
    let (bytes, ends) = small(folder.path(), |n| n - 1);
    let mut damaged = bytes[..ends[1]].to_vec();
    damaged.extend(vec![0; 20 << 20]);
    damaged.extend(record(4, 3, 3 << 20));
    damaged.extend(record(5, 4, 10));
    fs::write(only(folder.path()), &damaged).unwrap();
    match recover(&OsDisk, folder.path()) {
        Err(RecoverError::Damage { number, synced, .. }) => {
            assert_eq!((number, synced), (RecordNo(2), RecordNo(4)));
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    // A quarter of the usual: each case is a folder of files.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 4,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// More pages than can be enumerated, and torn bytes anywhere in the unsynced part.
    #[test]
    fn whatever_the_unsynced_part_holds_every_promised_record_stays(
        durable in 0u64..20,
        lost in proptest::collection::vec(any::<bool>(), 40),
        noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
        let mut ends = vec![journal.segment_bytes() as usize];
        for n in 1..=40u64 {
            let synced = if n > durable { durable } else { 0 };
            journal.append(&record(n, synced, 3_000), RecordNo(n)).unwrap();
            ends.push(journal.segment_bytes() as usize);
        }
        journal.close().unwrap();
        let path = only(folder.path());
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let from = ends[durable as usize];
        for (page, _) in lost.iter().enumerate().filter(|(_, lost)| **lost) {
            let begin = (page * 4_096).max(from).min(bytes.len());
            let end = ((page + 1) * 4_096).max(from).min(bytes.len());
            bytes[begin..end].fill(0);
        }
        for (index, value) in noise {
            let at = from + index.index(bytes.len() - from);
            bytes[at] = value;
        }
        fs::write(&path, &bytes).unwrap();
        let is_whole = |&n: &usize| bytes[ends[n - 1]..ends[n]] == whole[ends[n - 1]..ends[n]];
        let kept = (1..=40).take_while(is_whole).count();
        let recovered = recover(&OsDisk, folder.path()).unwrap();
        prop_assert_eq!(recovered.last.map_or(0, |no| no.0), kept as u64);
        prop_assert!(kept as u64 >= durable);
        prop_assert_eq!(records(folder.path()), (1..=kept as u64).collect::<Vec<_>>());
        goes_on(folder.path(), "after a power cut");
    }

    #[test]
    fn a_file_of_any_bytes_is_recovered_or_refused_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        begun in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut file = if begun { header(u64::MAX).encode() } else { Vec::new() };
        file.extend(bytes);
        fs::write(folder.path().join(segment::file_name(RecordNo(u64::MAX))), file).unwrap();
        drop(check::check(folder.path()));
        drop(recover(&OsDisk, folder.path()));
        prop_assert!(repair(&OsDisk, folder.path()).is_ok());
    }
}
