use super::*;
use crate::crash::Rng;

fn txn(span: (u64, u64), steps: &[(Step, Option<&[u64]>)]) -> Txn {
    Txn {
        invoked: Duration::from_millis(span.0),
        returned: Duration::from_millis(span.1),
        fate: Fate::Done,
        may_be_old: false,
        steps: steps.iter().map(|(step, found)| (*step, found.map(<[u64]>::to_vec))).collect(),
    }
}

fn append(key: u64, value: u64) -> (Step, Option<&'static [u64]>) {
    (Step::Append(key, value), None)
}

fn read(key: u64, found: &[u64]) -> (Step, Option<&[u64]>) {
    (Step::Read(key), Some(found))
}

fn last(lists: &[(u64, &[u64])]) -> Lists {
    lists.iter().map(|(key, values)| (*key, values.to_vec())).collect()
}

#[track_caller]
fn rejects(txns: &[Txn], end: &Lists, why: &str) {
    let errors = check(txns, end);
    assert!(errors.iter().any(|error| error.contains(why)), "{why}: {errors:#?}");
}

#[test]
fn a_serial_history_is_accepted() {
    let txns = [
        txn((0, 1), &[append(1, 10), read(1, &[10])]),
        txn((2, 3), &[read(1, &[10]), append(1, 11), append(2, 20)]),
        txn((4, 5), &[read(1, &[10, 11]), read(2, &[20])]),
    ];
    assert_eq!(check(&txns, &last(&[(1, &[10, 11]), (2, &[20])])), Vec::<String>::new());
}

#[test]
fn a_lost_append_is_rejected() {
    rejects(&[txn((0, 1), &[append(1, 10)])], &last(&[]), "lost");
    // It was seen, and is gone in the end.
    let mut unknown = txn((0, 1), &[append(1, 10)]);
    unknown.fate = Fate::Unknown;
    rejects(&[unknown, txn((2, 3), &[read(1, &[10])])], &last(&[]), "lost");
}

#[test]
fn a_duplicated_append_is_rejected() {
    rejects(&[txn((0, 1), &[append(1, 10)])], &last(&[(1, &[10, 10])]), "duplicate");
}

#[test]
fn an_append_that_was_refused_is_rejected() {
    let mut refused = txn((0, 1), &[append(1, 10)]);
    refused.fate = Fate::Refused;
    rejects(&[refused], &last(&[(1, &[10])]), "refused, but there");
}

#[test]
fn a_torn_transaction_is_rejected() {
    let mut unknown = txn((0, 1), &[append(1, 10), append(2, 20)]);
    unknown.fate = Fate::Unknown;
    rejects(&[unknown], &last(&[(1, &[10])]), "torn");
}

#[test]
fn a_stale_read_is_rejected_unless_it_may_be_old() {
    let mut txns =
        [txn((0, 1), &[append(1, 10)]), txn((2, 3), &[append(1, 11)]), txn((4, 5), &[read(1, &[10])])];
    let end = last(&[(1, &[10, 11])]);
    rejects(&txns, &end, "not serializable");
    txns[2].may_be_old = true;
    assert!(check(&txns, &end).is_empty());
}

#[test]
fn an_old_read_shows_one_state_of_all_lists() {
    let mut txns = [
        txn((0, 1), &[append(1, 10), append(2, 20)]),
        txn((2, 3), &[append(1, 11), append(2, 21)]),
        txn((4, 5), &[read(1, &[10]), read(2, &[20, 21])]),
    ];
    txns[2].may_be_old = true;
    rejects(&txns, &last(&[(1, &[10, 11]), (2, &[20, 21])]), "not serializable");
}

#[test]
fn g1c_is_rejected() {
    // Each read what the other appended; all at the same time.
    let txns = [txn((0, 9), &[append(1, 10), read(2, &[20])]), txn((0, 9), &[append(2, 20), read(1, &[10])])];
    rejects(&txns, &last(&[(1, &[10]), (2, &[20])]), "not serializable");
}

#[test]
fn g_single_is_rejected() {
    // The first saw one append of the second, and not the other.
    let txns = [txn((0, 9), &[read(1, &[10]), read(2, &[])]), txn((0, 9), &[append(1, 10), append(2, 20)])];
    rejects(&txns, &last(&[(1, &[10]), (2, &[20])]), "not serializable");
}

#[test]
fn write_skew_is_rejected() {
    let txns = [txn((0, 9), &[read(1, &[]), append(2, 20)]), txn((0, 9), &[read(2, &[]), append(1, 10)])];
    rejects(&txns, &last(&[(1, &[10]), (2, &[20])]), "not serializable");
}

#[test]
fn writes_in_another_order_than_they_were_made_are_rejected() {
    let txns = [txn((0, 1), &[append(1, 10)]), txn((2, 3), &[append(1, 11)])];
    rejects(&txns, &last(&[(1, &[11, 10])]), "not serializable");
}

#[test]
fn its_own_append_is_read() {
    let txns = [txn((0, 1), &[append(1, 10), read(1, &[])])];
    rejects(&txns, &last(&[(1, &[10])]), "its own append");
}

/// A history that some serial order explains: transactions take effect one after the other, at a moment within
/// their span.
fn generate(rng: &mut Rng, count: u64) -> (Vec<Txn>, Lists) {
    let mut lists = Lists::new();
    let mut txns = Vec::new();
    for number in 0..count {
        let moment = number * 10 + 50;
        let (before, after) = (rng.below(40) + 1, rng.below(40) + 1);
        let mut txn = txn((moment - before, moment + after), &[]);
        // Some never heard, some were refused.
        txn.fate = match rng.below(10) {
            0 => Fate::Unknown,
            1 => Fate::Refused,
            _ => Fate::Done,
        };
        for step in 0..rng.below(4) + 1 {
            let key = rng.below(3);
            if rng.below(2) == 0 {
                txn.steps.push((Step::Append(key, number * 10 + step), None));
                if txn.fate != Fate::Refused {
                    lists.entry(key).or_default().push(number * 10 + step);
                }
            } else {
                let found = lists.get(&key).cloned().unwrap_or_default();
                txn.steps.push((Step::Read(key), Some(found)));
            }
        }
        txns.push(txn);
    }
    (txns, lists)
}

#[test]
fn what_has_an_order_is_accepted_and_what_is_spoilt_is_rejected() {
    let mut rng = Rng::seeded(11);
    let mut spoilt = 0;
    for round in 0..300 {
        let (mut txns, mut end) = generate(&mut rng, 40);
        let errors = check(&txns, &end);
        assert!(errors.is_empty(), "round {round}: {errors:#?}");
        // One acknowledged transaction reads as if it had come long before, or its append is gone.
        let victim = 20 + rng.below(20) as usize;
        if txns[victim].fate != Fate::Done {
            continue;
        }
        let Some((step, found)) = txns[victim].steps.first_mut() else { continue };
        match (step, found) {
            (Step::Read(_), Some(found)) if found.len() > 12 => found.truncate(1),
            (Step::Append(key, value), _) => end.entry(*key).or_default().retain(|v| v != value),
            _ => continue,
        }
        spoilt += 1;
        assert!(!check(&txns, &end).is_empty(), "round {round}: {victim}");
    }
    assert!(spoilt > 50, "{spoilt}");
}

/// What could not be read as a list was taken for a read that nothing is known of.
#[test]
fn a_read_that_is_no_list_is_rejected() {
    let txns = [txn((0, 1), &[append(1, 10)]), txn((2, 3), &[(Step::Read(1), None)])];
    rejects(&txns, &last(&[(1, &[10])]), "what transaction 1 read of list 1 is none");
}
