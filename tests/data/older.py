"""The tables of a corpus as earlier versions had them."""

VERSION_5 = "drop table forgotten; drop table forgotten_file; pragma user_version = 5;"
VERSION_4 = f"""{VERSION_5}
create table old_gone (split text primary key, runs blob not null);
insert into old_gone select split, runs from gone;
drop table gone;
alter table old_gone rename to gone;
drop table folder;
drop table kept_out;
alter table source drop column local;
alter table source drop column with_secrets;
pragma user_version = 4;
"""
VERSION_3 = f"{VERSION_4}drop table removed; pragma user_version = 3;"
VERSION_2 = f"{VERSION_3}drop table gone; pragma user_version = 2;"
