"""The spreadsheet in real browsers."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from browser.person import Person
from processes.cluster import Cluster

Make = Callable[..., Person]


def look(somebody: Person, sheet: str, name: str) -> Page:
    page = somebody.open(f"/pages/spreadsheet.html?name={name}#{sheet}")
    expect(page.locator("#state")).to_have_text("connected")
    return page


def cell(page: Page, name: str) -> Locator:
    return page.locator(f'td[data-cell="{name}"]')


def type_into(page: Page, name: str, text: str, end: str = "Enter") -> None:
    cell(page, name).click()
    page.keyboard.type(text)
    if end:
        page.keyboard.press(end)


def shown(page: Page) -> dict[str, str]:
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("td[data-cell]")]
            .filter((box) => box.textContent).map((box) => [box.dataset.cell, box.textContent]))"""
    )


def test_two_browsers_see_each_others_edits_and_formulas_follow(person: Make) -> None:
    ann, ben = look(person(), "budget", "Ann"), look(person(dark=True), "budget", "Ben")
    for row, (what, cost) in enumerate([("Rent", "840"), ("Food", "310.5"), ("Trains", "96")], 1):
        type_into(ann, f"A{row}", what, "Tab")
        type_into(ann, f"B{row}", cost)
    type_into(ben, "A4", "Together", "Tab")
    type_into(ben, "B4", "=SUM(B1:B3)")
    type_into(ben, "C4", '=IF(B4>1200,"too much","fine")')
    expect(cell(ann, "B4")).to_have_text("1246.5")
    expect(cell(ann, "C4")).to_have_text("too much")
    type_into(ann, "B2", "250")
    for page in (ann, ben):
        expect(cell(page, "B4")).to_have_text("1186")
        expect(cell(page, "C4")).to_have_text("fine")


def test_every_keystroke_is_seen_at_once_and_so_is_where_somebody_is(person: Make) -> None:
    ann, ben = look(person(), "keys", "Ann"), look(person(), "keys", "Ben")
    cell(ann, "C3").click()
    expect(cell(ben, "C3")).to_have_attribute("data-who", "Ann")
    ann.keyboard.type("hel")
    expect(cell(ben, "C3")).to_have_text("hel")
    ann.keyboard.type("lo")
    expect(cell(ben, "C3")).to_have_text("hello")


def test_a_circle_of_formulas_is_shown_and_heals(person: Make) -> None:
    ann, ben = look(person(), "circle", "Ann"), look(person(), "circle", "Ben")
    type_into(ann, "A1", "=B1")
    type_into(ben, "B1", "=A1+1")
    for page in (ann, ben):
        expect(cell(page, "A1")).to_have_text("#CYCLE!")
        expect(cell(page, "B1")).to_have_text("#CYCLE!")
    type_into(ann, "A1", "4")
    for page in (ann, ben):
        expect(cell(page, "B1")).to_have_text("5")


def test_who_comes_late_gets_the_whole_sheet(person: Make) -> None:
    ann = look(person(), "late", "Ann")
    for row in range(1, 6):
        type_into(ann, f"A{row}", str(row * 11))
    type_into(ann, "B1", "=SUM(A1:A5)", "Enter")
    expect(cell(ann, "B1")).to_have_text("165")
    late = look(person(), "late", "Ben")
    expect(cell(late, "B1")).to_have_text("165")
    assert shown(late) == shown(ann)


def test_kill_9_of_the_workers_while_two_people_type_loses_no_keystroke_and_drops_no_socket(
    person: Make, site: Cluster
) -> None:
    ann, ben = person(), person()
    left, right = look(ann, "crash", "Ann"), look(ben, "crash", "Ben")
    for row in range(1, 9):
        cell(left, f"A{row}").click()
        cell(right, f"B{row}").click()
        for letter in "keystroke":
            left.keyboard.type(letter)
            right.keyboard.type(letter.upper())
            if letter == "t" and row % 2:
                for pid in site.worker_pids:
                    site.kill(pid)
        left.keyboard.press("Enter")
        right.keyboard.press("Enter")
    wanted = {f"A{row}": "keystroke" for row in range(1, 9)} | {f"B{row}": "KEYSTROKE" for row in range(1, 9)}
    for page in (left, right):
        for name, text in wanted.items():
            expect(cell(page, name)).to_have_text(text)
        assert shown(page) == wanted
    assert not ann.lost_sockets
    assert not ben.lost_sockets
    late = look(person(), "crash", "Cleo")
    expect(cell(late, "B8")).to_have_text("KEYSTROKE")
    assert shown(late) == wanted
