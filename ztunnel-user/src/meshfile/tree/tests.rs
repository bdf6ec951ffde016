//! The marked tree: values, tags, places, aliases and the bounds on all of them.

use super::*;

fn refused(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn every_value_knows_its_place() {
    let root = read("a: 1\nb:\n  - é: x\n    c: !Exact y\n").unwrap();
    let Value::Map(entries) = &root.value else {
        panic!("{root:?}")
    };
    assert_eq!(entries[0].0.at, Place { line: 1, column: 1 });
    assert_eq!(entries[0].1.at, Place { line: 1, column: 4 });
    let Value::List(items) = &entries[1].1.value else {
        panic!("{root:?}")
    };
    let Value::Map(inner) = &items[0].value else {
        panic!("{root:?}")
    };
    assert_eq!(inner[0].1.at, Place { line: 3, column: 8 });
    assert_eq!(inner[1].1.tag.as_deref(), Some("Exact"));
    assert_eq!(inner[1].1.at.line, 4);
}

#[test]
fn nesting_is_bounded() {
    let deep = |open: &str, close: &str, depth| open.repeat(depth) + &close.repeat(depth);
    assert!(read(&deep("[", "]", 40)).is_ok());
    assert!(refused(&deep("[", "]", 60)).contains("nested deeper"));
    assert!(read(&"[".repeat(100_000)).is_err());
    assert!(read(&"- ".repeat(100_000)).is_err());
    assert!(read(&"{a: ".repeat(100_000)).is_err());
}

#[test]
fn nesting_through_aliases_is_bounded() {
    let mut text = "a0: &a0 [x]\n".to_owned();
    for level in 1..60 {
        text.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(refused(&text).contains("nested deeper"));
}

#[test]
fn expansion_of_aliases_is_bounded() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let repeated = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{repeated}]\n"));
    }
    assert!(refused(&text).contains("aliases expanded"));
}

#[test]
fn an_alias_cannot_contain_itself() {
    assert!(refused("a: &a [*a]").contains("inside the value"));
    assert!(refused("a: *nobody").contains("not YAML"));
}

#[test]
fn an_alias_is_the_value_with_its_own_place() {
    let root = read("a: &x [1]\nb: *x\n").unwrap();
    let Value::Map(entries) = &root.value else {
        panic!("{root:?}")
    };
    assert_eq!(entries[1].1.at.line, 2);
    assert!(matches!(&entries[1].1.value, Value::List(items) if items.len() == 1));
}

#[test]
fn one_file_is_one_document() {
    assert!(refused("a: 1\n---\nb: 2\n").contains("a second document"));
    assert!(read("---\na: 1\n...\n").is_ok());
}

#[test]
fn the_place_of_a_problem_is_in_the_text() {
    let text = "%mesh: {t: [{name: \u{fffd}\u{fffd}\u{fffd}\u{fffd}\0}]}\n";
    let problem = read(text).unwrap_err();
    assert!(problem.message.starts_with("not YAML"), "{problem}");
    assert!(problem.column <= text.chars().count(), "{problem}");
}

#[test]
fn what_is_not_yaml_is_refused_with_its_place() {
    let problem = read("a: 1\nb: [1\nc: }\n").unwrap_err();
    assert!(problem.message.starts_with("not YAML"), "{problem}");
    assert!(problem.line >= 2, "{problem}");
}
