"""Tables as people send them, and what is refused of them."""

from collections import Counter

import pytest

from appliance.datasets.interchange.annotated import Annotated, Region, Size
from appliance.datasets.interchange.table import Csv
from appliance.datasets.records import Box
from appliance.errors import InvalidInput

SIZE = Size(640, 480)


def read(content: bytes | str, *images: str, path: str = "labels.csv") -> list[Annotated]:
    encoded = content if isinstance(content, bytes) else content.encode()
    return list(Csv().read({path: encoded}, dict.fromkeys(images or ("a.jpg",), SIZE)))


def refusal(content: bytes | str) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(content)
    return str(caught.value)


def test_a_row_is_a_label_and_several_rows_are_several() -> None:
    content = "image,label,value,test\na.jpg,cat,,true\na.jpg,sharp,0.25,true\nb.jpg,,,no\n"
    assert read(content, "a.jpg", "b.jpg", "c.jpg") == [
        Annotated("a.jpg", SIZE, {"cat": None, "sharp": 0.25}, test=True),
        Annotated("b.jpg", SIZE),
    ]


def test_tensorflow_names_the_box_in_the_class() -> None:
    content = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,640,480,cat,1,2,30,40\n"
    [one] = read(content, "test/a.jpg", path="test/_annotations.csv")
    assert (one.regions, one.labels, one.test) == ((Region("cat", Box(1, 2, 30, 40)),), {}, True)


def test_spreadsheets_write_semicolons_tabs_marks_and_utf_16() -> None:
    said = [Annotated("a.jpg", SIZE, {"chaise longue; bleue": None})]
    assert read('\ufeffimage;label\r\na.jpg;"chaise longue; bleue"\r\n') == said
    assert read("Image\tClass Name\r\na.jpg\tchaise longue; bleue\r\n".encode("utf-16")) == said
    assert read("image, label\na.jpg, chaise longue; bleue\n") == said


def test_splits_are_words_too() -> None:
    content = "path,split,label\n1.jpg,TEST,x\n2.jpg,validation,x\n3.jpg,train,x\ntest/4.jpg,,x\n"
    images = ("1.jpg", "2.jpg", "3.jpg", "test/4.jpg")
    assert [one.test for one in read(content, *images)] == [True, False, False, True]


def test_a_cell_that_a_spreadsheet_takes_for_a_formula_stays_as_it_is() -> None:
    image = Annotated(
        "=a.jpg", SIZE, dict.fromkeys(["=1+1", "+x", "-x", "@x", '"', "'"]), meta_data={"=": "=1"}
    )
    [(path, content)] = Csv().write([image], [], [])
    assert list(Csv().read({path: b"".join(content)}, {"=a.jpg": SIZE})) == [image]


def test_what_is_left_out_is_counted() -> None:
    left_out = Counter[str]()
    files = {"a.csv": b"image,label,colour\na.jpg,x,red\nb.jpg,x,red\n", "b.csv": b"epoch,loss\n1,2\n"}
    list(Csv().read(files, {"a.jpg": SIZE}, left_out))
    assert left_out == {
        "columns of other names": 1,
        "images that are not there": 1,
        "files of another kind": 1,
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,label,value\na.jpg,cat,high\n", "labels.csv, line 2: value: a number with a point"),
        ("image,label,value\na.jpg,cat,nan\n", "labels.csv, line 2: value: a number with a point"),
        ("image,label,value\na.jpg,,1\n", "line 2: a value without a label"),
        (
            "image,label,value\na.jpg,cat,1\na.jpg,cat,2\n",
            "line 3: the image has this label with another value",
        ),
        ("image,test\na.jpg,maybe\n", "line 2: test: true or false"),
        ("image,test\na.jpg,true\na.jpg,false\n", "line 3: the image is in a test part and in another"),
        ("image,label\na.jpg,cat,dog\n", "line 2: 3 cells, the header names 2"),
        ("image,label\n,cat\n", "line 2: the row names no image"),
        ('image,label\na.jpg,"cat\n', "labels.csv, line 2: unexpected end of data"),
        ("image,label,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,3,\n", "line 2: a box has xmin, ymin, xmax, ymax"),
        ("image,label,xmin,ymin,xmax,ymax\na.jpg,,1,2,3,4\n", "line 2: a box needs a label"),
        ("image,label,xmin,ymin,xmax,ymax\na.jpg,cat,3,2,1,4\n", "line 2: the box has no area"),
        ("image,label,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,999,4\n", "line 2: the box is not within the image"),
        ("image,box_label\na.jpg,cat\n", "line 2: a box needs a label and all of xmin"),
        (
            "image,label,xmin,ymin,xmax,ymax,width,height\na.jpg,cat,1,2,3,4,480,640\n",
            "line 2: says 480 x 640 px",
        ),
        ("image,meta_data\na.jpg,[1]\n", "line 2: meta_data: a JSON object is expected"),
        ('image,meta_data\na.jpg,"{""a"":1e400}"\n', "line 2: meta_data: a number is out of range"),
        ('image,meta_data\na.jpg,{}\na.jpg,"{""a"":1}"\n', "line 3: the image has other meta data too"),
        ("image,filename\na.jpg,a.jpg\n", "labels.csv, line 1: two columns say the same (image)"),
        ("filename, cat, dog\na.jpg, 1, 0\n", "labels.csv, line 1: a column label is expected"),
        ("picture,label\na.jpg,cat\n", "no CSV file is here whose first line names a column image"),
        ("", "no CSV file is here whose first line names a column image"),
        ("image,label\n../a.jpg/../../x.jpg,cat\n", "no image of a CSV file is here"),
        (b"image,label\na.jpg,caf\xe9\n", "labels.csv: is no UTF-8 text at byte 21: save it as UTF-8"),
        (f"image,label\na.jpg,{'x' * 201}\n", "line 2: a label's name: 1 to 200 characters"),
        (f"image,label\na.jpg,{'x' * 140_000}\n", "line 2: field larger than field limit"),
    ],
)
def test_a_row_is_refused_by_file_and_line(content: bytes | str, said: str) -> None:
    assert said in refusal(content)


def test_a_name_of_two_images_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^labels.csv, line 2: the name fits several images"):
        read("image,label\na.jpg,cat\n", "x/a.jpg", "y/a.jpg")


def test_labels_of_boxes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="take coco"):
        Csv().check([Annotated("a.jpg", SIZE, regions=(Region("a", Box(1, 1, 2, 2), {"b": None}),))])


def test_other_readers_find_one_row_for_each_label_and_box() -> None:
    image = Annotated("x/a.jpg", SIZE, {"cat": 1.0}, (Region("dog", Box(1, 2, 3.5, 4)),), True, {"k": [1]})
    [(path, content)] = Csv().write([image, Annotated("b.jpg", SIZE)], ["cat"], ["dog"])
    assert path == "annotations.csv"
    assert b"".join(content).decode().split("\r\n") == [
        "image,label,value,box_label,xmin,ymin,xmax,ymax,test,meta_data",
        'x/a.jpg,cat,1,,,,,,true,"{""k"":[1]}"',
        "x/a.jpg,,,dog,1,2,3.5,4,true,",
        "b.jpg,,,,,,,,false,",
        "",
    ]
